"""Chats: prompts out of messages, and messages, calls and structure out of what is generated."""
