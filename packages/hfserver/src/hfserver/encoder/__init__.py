"""Runs encoders: texts of many requests in one forward, without padding where the model allows."""
