"""What the API says when something is wrong."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from redis.exceptions import RedisError

from cronium_worker.errors import (
    BrokerUnavailable,
    JobConflict,
    JobNotFound,
    ScheduleConflict,
    ScheduleNotFound,
    SecretsUnreadable,
    TooBusy,
    details_message,
    validation_message,
)

CODES: dict[type[Exception], int] = {
    RequestValidationError: 422,
    ValidationError: 422,
    SecretsUnreadable: 422,
    JobConflict: 409,
    ScheduleConflict: 409,
    JobNotFound: 404,
    ScheduleNotFound: 404,
    BrokerUnavailable: 503,
    TooBusy: 503,
    RedisError: 503,
}


class Problem(BaseModel):
    """What is wrong, and how to mend it."""

    error: str


# For the description of calls.
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "it is unknown, or has expired"}}
REFUSED: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "the id or name is taken; or the job has not ended"},
    422: {"model": Problem, "description": "it is refused, nothing was enqueued or kept"},
    503: {"model": Problem, "description": "Redis or the broker is away"},
}


def answer(code: int) -> Any:
    """A handler of FastAPI for errors that have this code."""
    return lambda _, error: JSONResponse({"error": _message(error)}, code)


def refuse(_: Request, error: Any) -> JSONResponse:
    """The handler of what is raised as HTTPException, FastAPI's own among them."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _message(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return validation_message(error)
    if isinstance(error, RequestValidationError):
        # Without what was given: it may be a secret.
        return details_message({**detail, "loc": detail["loc"][1:] or detail["loc"]} for detail in error.errors())
    return f"Redis: {error}" if isinstance(error, RedisError) else str(error)
