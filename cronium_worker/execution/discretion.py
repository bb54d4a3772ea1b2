"""What a script left as its output, without the job's secrets."""

from cronium_worker.masking import Masker
from cronium_worker.models import Output
from cronium_worker.workspace.collection import Collected


def without_secrets(collected: Collected, masker: Masker) -> Output:
    """All but the files' content, which is kept as it is or not at all: that `collect` has seen to."""
    output = collected.output
    return output.model_copy(
        update={
            "data": masker.json(output.data),
            "variables": masker.json(output.variables),
            "files": {masker.text(name): file for name, file in output.files.items()},
            "notes": tuple(map(masker.message, collected.notes)),
        }
    )
