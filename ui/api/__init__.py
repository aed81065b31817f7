"""The door for programs: OpenAI's API (and a little of Ollama's) beside the page, on the same server."""
