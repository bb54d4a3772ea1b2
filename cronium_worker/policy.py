"""What this fleet accepts: a job is checked against the settings, and gets the fleet's defaults. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from cronium_worker.models import Job, Resources, ScriptType, formats
from cronium_worker.models.job import PullPolicy
from cronium_worker.models.queues import check_fleet_queue
from cronium_worker.sealing import NO_KEY
from cronium_worker.settings import OWN_NAMES, Settings

# How often the fleet runs a job again after faults of its own, whatever the job's own policy says.
FAULT_BUDGET = 3
# How many workers in a row may die within seconds of taking a job over, before that is the job's end.
DEATH_BUDGET = 10
_OWN_NETWORK_MODES = ("isolated", "none")


def admit(data: Job | Mapping[str, Any], settings: Settings) -> Job:
    """The job with the fleet's defaults for resources that were not given.

    Raises pydantic.ValidationError with all the fields that are wrong in themselves, above a maximum, or not
    on an allow-list. Nothing is lowered silently.
    """
    job = with_defaults(data if isinstance(data, Job) else Job.model_validate(data), settings)
    errors = [*_above_maxima(job.resources, settings), *_not_allowed(job, settings)]
    if job.secrets and not settings.secret_keys:
        errors.append(_refusal(("secrets",), None, NO_KEY))
    if errors:
        raise ValidationError.from_exception_data("Job", errors, hide_input=True)
    return job


def with_known_fields(job: Job, hosts: Mapping[str, int]) -> Job:
    """Return the job without what one of the hosts does not know and can do without.

    `hosts`: the format that each reads. Raises pydantic.ValidationError with the fields that are not known everywhere
    and cannot be left out.
    """
    unknown = formats.newer_than(min(hosts.values(), default=formats.FORMAT), job)
    errors = []
    for addition in unknown:
        if not addition.is_optional:
            too_old = ", ".join(sorted(name for name, reads in hosts.items() if reads < addition.format))
            reason = f"not known to {too_old}: upgrade these hosts (`cronium hosts`), or leave it out"
            errors.append(_refusal(tuple(addition.field.split(".")), addition.value, reason))
    if errors:
        raise ValidationError.from_exception_data("Job", errors, hide_input=True)
    return formats.without(job, unknown) if unknown else job


def refused(field: str, reason: str) -> ValidationError:
    """The error for what stands beside a job: an option of its task."""
    return ValidationError.from_exception_data("Job", [_refusal((field,), None, reason)], hide_input=True)


def with_defaults(job: Job, settings: Settings) -> Job:
    """The job with the fleet's defaults for resources that were not given, whatever the maxima are now."""
    given = job.resources.model_dump(exclude_unset=True)
    return job.model_copy(update={"resources": Resources(**{**settings.defaults.model_dump(), **given})})


def image_candidates(job: Job, settings: Settings) -> tuple[str, ...]:
    """The images the job may run in, with the registry's prefix, the preferred one first; the host takes the first
    that it has."""
    named = (job.image,) if job.image else settings.images.candidates(job.script.type)
    return tuple(settings.registry.resolve(image) for image in named)


def pull_policy(asked: PullPolicy, images: Iterable[str]) -> PullPolicy:
    """The policy for resolved images. What has one of our own names and no registry is built on each host, and never
    pulled: what the Docker Hub has under such a name may be anybody's."""
    return "never" if all(map(_is_built_here, images)) else asked


def _is_built_here(image: str) -> bool:
    return image.startswith(OWN_NAMES)


def known_images(settings: Settings) -> frozenset[str]:
    """The images that jobs may run in, as jobs name them."""
    own = {image for kind in get_args(ScriptType) for image in settings.images.candidates(kind)}
    return frozenset(own | set(settings.allowed_images))


def wanted_images(settings: Settings) -> tuple[tuple[str, ...], ...]:
    """What a host should have before a job asks, as jobs name it, and what can be pulled: for each image its
    candidates, the preferred one first."""
    own = [settings.images.candidates(kind) for kind in get_args(ScriptType)]
    wanted = dict.fromkeys([*own, *((image,) for image in settings.allowed_images)])
    return tuple(names for names in wanted if not any(map(_is_built_here, map(settings.registry.resolve, names))))


def _refusal(location: tuple[str, ...], value: object, reason: str) -> InitErrorDetails:
    # The reason is given as a value, not as the template: it may hold braces.
    error = PydanticCustomError("not_allowed", "{reason}", {"reason": reason})
    return InitErrorDetails(type=error, loc=location, input=value)


def _above_maxima(resources: Resources, settings: Settings) -> list[InitErrorDetails]:
    maxima = settings.maxima.model_dump()
    return [
        _refusal(("resources", name), value, f"{value} is above this fleet's maximum of {maxima[name]}")
        for name, value in resources.model_dump().items()
        if maxima[name] is not None and value > maxima[name]
    ]


def _not_allowed(job: Job, settings: Settings) -> list[InitErrorDetails]:
    errors = []
    if job.image is not None and job.image not in known_images(settings):
        reason = f"{job.image} is not on this fleet's allow-list (CRONIUM_ALLOWED_IMAGES)"
        errors.append(_refusal(("image",), job.image, reason))
    mode = job.network.mode
    if mode not in _OWN_NETWORK_MODES and mode not in settings.allowed_networks:
        reason = f"{mode} is neither isolated, none, nor on this fleet's allow-list (CRONIUM_ALLOWED_NETWORKS)"
        errors.append(_refusal(("network", "mode"), mode, reason))
    if job.queue is not None:
        try:
            check_fleet_queue(job.queue, settings.queues)
        except ValueError as error:
            errors.append(_refusal(("queue",), job.queue, str(error)))
    return errors
