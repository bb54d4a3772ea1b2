"""What a client of Redis waits for, by what Redis says: versions and faults that the tests have no server for."""

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cronium_worker.fleet.patience import Patience, will_pass

IN_A_SCRIPT = "Error running script (call to f_0): @user_script:7: @user_script: 7: -%s"


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("Connection refused"),
        RedisTimeoutError("Timeout reading from socket"),
        BusyLoadingError("Redis is loading the dataset in memory"),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ReadOnlyError("You can't write against a read only replica."),
        MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        ClusterDownError("The cluster is down"),
        TryAgainError("Multiple keys request during rehashing of slot"),
        ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        ResponseError("Command # 1 (EVALSHA 0) of pipeline caused error: MISCONF Errors writing to the AOF file"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
        # Redis 6
        ResponseError(IN_A_SCRIPT % "OOM command not allowed when used memory > 'maxmemory'."),
        ResponseError(IN_A_SCRIPT % "READONLY You can't write against a read only replica."),
        ResponseError(IN_A_SCRIPT % "MISCONF Redis is configured to save RDB snapshots"),
    ],
)
def test_waits(error: Exception) -> None:
    assert will_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("invalid username-password pair or user is disabled."),
        NoScriptError("No matching script."),
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ResponseError("BUSYGROUP Consumer Group name already exists"),
        ResponseError("unknown command 'XADD'"),
        ResponseError(IN_A_SCRIPT % "ERR Write commands not allowed after non deterministic commands"),
    ],
)
def test_does_not_wait(error: Exception) -> None:
    assert not will_pass(error)


@pytest.mark.parametrize(
    ("errors", "tries", "told"),
    [
        ([], 1, 0),
        ([RedisConnectionError()] * 2, 3, 2),
        ([RedisConnectionError()] * 3, 3, 3),
        ([AuthenticationError()], 1, 0),
    ],
)
def test_it_tries_again_tells_and_returns_what_came(
    errors: list[Exception], tries: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redis.retry.sleep", lambda _: None)
    coming, made, heard = list(errors), [], []

    def do() -> int:
        made.append(1)
        if coming:
            raise coming.pop(0)
        return 5

    patience = Patience(2, heard.append)
    if len(errors) < tries:
        assert patience.call_with_retry(do, lambda _: None) == 5
    else:
        with pytest.raises(type(errors[0])):
            patience.call_with_retry(do, lambda _: None)
    assert (len(made), len(heard)) == (tries, told)
