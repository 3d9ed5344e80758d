"""A model that calls another service: all calls of a request at the same time."""

import asyncio
import os
from typing import Any

import httpx2

import kserve
from kserve.errors import InferenceError

# The service, a model of its own: examples/custom-model.
SCORER = os.environ.get("SCORER_URL", "http://localhost:8080/v1/models/reading-ease:predict")

GRADES = ((60, "easy"), (30, "plain"))


class Grader(kserve.Model):
    """Says of texts whether they are easy, plain or hard to read, by the scores of a service."""

    async def load(self) -> bool:
        """Make the client; it keeps its connections for all requests."""
        self.client = httpx2.AsyncClient(timeout=10)
        return True

    async def predict(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Answer a V1 request: while the service works, other requests are answered.

        Raises:
            InferenceError: The service did not answer as it should.
        """
        scores = await asyncio.gather(*map(self.score, payload["instances"]))
        return {"predictions": [grade(score) for score in scores]}

    async def score(self, text: str) -> float:
        """Ask the service for the score of one text."""
        try:
            response = await self.client.post(SCORER, json={"instances": [text]})
            response.raise_for_status()
        except httpx2.HTTPError as exc:
            raise InferenceError(f"the scoring service failed: {exc}") from exc
        return float(response.json()["predictions"][0])


def grade(score: float) -> str:
    """Give the grade of a score."""
    return next((name for least, name in GRADES if score >= least), "hard")
