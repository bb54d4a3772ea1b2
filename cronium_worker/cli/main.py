"""The command `cronium`: its groups, and errors as one line."""

import io
import sys

import click
from pydantic import ValidationError
from redis.exceptions import RedisError

from cronium_worker import __version__, tracing
from cronium_worker.cli.completion import completion
from cronium_worker.cli.doctor import doctor
from cronium_worker.cli.firewall import firewall
from cronium_worker.cli.fleet import cleanup, drain, hosts, leave
from cronium_worker.cli.flower import flower
from cronium_worker.cli.images import images
from cronium_worker.cli.jobs import cancel, logs, ps, result, status
from cronium_worker.cli.operate import config, key, worker
from cronium_worker.cli.printing import echo
from cronium_worker.cli.run import rerun, run
from cronium_worker.cli.schedule import schedule
from cronium_worker.cli.top import top
from cronium_worker.cli.web import web
from cronium_worker.cli.workflow import workflow
from cronium_worker.errors import BrokerUnavailable, CroniumError, validation_message

_FAILURE = 1
_INFRASTRUCTURE = 125


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cronium")
def cli() -> None:
    """Run scripts on a fleet of Docker hosts, each alone in a locked-down container.

    \b
    Example:
      cronium run hello.py --input '{"name": "Ada"}'
    """


_JOBS = (run, rerun, logs, status, result, cancel, ps, schedule, workflow, top)
_HOSTS = (hosts, drain, leave, cleanup, worker, images, flower, web, doctor, config, key, firewall, completion)
for command in (*_JOBS, *_HOSTS):
    cli.add_command(command)


def main() -> None:
    """The console script. An error that a user can mend is one line on stderr."""
    tracing.start()
    try:
        # Without standalone mode Click returns the exit code of an Exit.
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as error:
        text = io.StringIO()
        error.show(file=text)
        echo(text.getvalue(), err=True, nl=False)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except ValidationError as error:
        _fail(validation_message(error), _FAILURE)
    except BrokerUnavailable as error:
        _fail(str(error), _INFRASTRUCTURE)
    except CroniumError as error:
        _fail(str(error), _FAILURE)
    except RedisError as error:
        _fail(f"Redis: {error}; check CRONIUM_REDIS_URL, or run `cronium doctor`", _INFRASTRUCTURE)


def _fail(message: str, code: int) -> None:
    echo(f"cronium: {message}", err=True)
    sys.exit(code)
