"""Serves Hugging Face models over KServe's and OpenAI's protocols."""
