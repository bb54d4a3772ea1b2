"""OpenTelemetry, where it is installed (the extra `otel`) and the environment asks for it."""

from cronium_worker.settings import wants_tracing


def start() -> None:
    """At a program's start: what is installed of OpenTelemetry is set up by its own variables (`OTEL_*`), Celery's
    instrumentation with it. Who has started the program with `opentelemetry-instrument` has done so already."""
    if not wants_tracing():
        return
    try:
        from opentelemetry.instrumentation.auto_instrumentation import initialize
        from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider
    except ImportError:
        return
    if isinstance(get_tracer_provider(), ProxyTracerProvider):
        initialize()
