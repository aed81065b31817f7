"""What goes wrong, in OpenAI's shape: a sentence, a type, the field it is about, a code."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from engines.protocol import Failed


class ToldError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorDocument(BaseModel):
    """As programs for OpenAI read it."""

    error: ToldError


class OllamaErrorDocument(BaseModel):
    """As programs for Ollama read it."""

    error: str
    param: str | None
    code: str | None


def described(document: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For the API's own description: every refusal and every failure is that document."""
    return {
        "4XX": {"model": document, "description": "Refused"},
        "5XX": {"model": document, "description": "Failed"},
    }


class ApiError(Exception):
    """A request cannot be answered; the message says why, `param` names the field."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")

    def document(self, path: str = "/v1/") -> dict[str, Any]:
        """As programs read it on that path: on Ollama's routes the error is the sentence itself."""
        if path.startswith("/api/"):
            return {"error": str(self), "param": self.param, "code": self.code}
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


_STATUS_OF = {
    "unavailable": (503, "lane_unavailable"),
    "model": (404, "model_not_found"),
    "prompt": (400, "context_length_exceeded"),
    "memory": (503, "insufficient_memory"),
    "server": (502, "upstream_failed"),
    "cancelled": (499, "cancelled"),
}


def failure(failed: Failed) -> ApiError:
    """A run's failure as a program gets it: the sentence and the remedy that the page shows."""
    status, code = _STATUS_OF.get(failed.kind, (500, failed.kind))
    if failed.kind == "prompt" and "context" not in failed.message:
        code = "invalid_prompt"
    message = f"{failed.message} {failed.remedy or ''}".strip()
    return ApiError(status, message, code=code, param="messages" if failed.kind == "prompt" else None)
