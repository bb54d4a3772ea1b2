"""The same small programs in the three languages, so that a case is run in each."""

LANGUAGES = ("bash", "python", "node")


def script(language: str, **by_language: str) -> dict[str, str]:
    return {"type": language, "content": by_language[language]}


def exits_with(language: str, code: int) -> dict[str, str]:
    return script(language, bash=f"exit {code}", python=f"import sys; sys.exit({code})", node=f"process.exit({code})")


def says(language: str, text: str, *, then_sleep_s: float = 0) -> dict[str, str]:
    """Prints a line at once, then sleeps."""
    return script(
        language,
        bash=f"echo '{text}'; sleep {then_sleep_s}",
        python=f"import time; print('{text}'); time.sleep({then_sleep_s})",
        node=f"console.log('{text}'); setTimeout(() => {{}}, {then_sleep_s * 1000})",
    )
