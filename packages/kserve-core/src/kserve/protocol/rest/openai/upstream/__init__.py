"""What a proxy needs of the server behind it: connections, answers, events, errors and hooks."""
