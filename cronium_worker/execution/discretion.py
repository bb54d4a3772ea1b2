"""What a script left as its output, without the job's secrets."""

import base64

from cronium_worker.masking import Masker
from cronium_worker.models import Output, OutputFile
from cronium_worker.workspace.collection import Collected
from cronium_worker.workspace.walk import Notes


def without_secrets(collected: Collected, masker: Masker) -> Output:
    """Text is masked. A file is kept as it is or not at all: with a part of it replaced it would be another one."""
    output = collected.output
    withheld = Notes()
    notes = [masker.message(note) for note in collected.notes]
    files: dict[str, OutputFile] = {}
    for given, file in output.files.items():
        name = masker.text(given)
        if file.content is not None and masker.found_in(base64.b64decode(file.content)):
            # Of a short secret alone in a file, the checksum tells as much as the content.
            files[name] = file.model_copy(update={"content": None, "sha256": ""})
            withheld.add("holds a secret: without content and checksum", name.encode())
        else:
            files[name] = file
    return output.model_copy(
        update={
            "data": masker.json(output.data),
            "variables": masker.json(output.variables),
            "files": files,
            "notes": (*notes, *withheld.texts()),
        }
    )
