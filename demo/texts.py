"""What people send: questions, remarks, and now and then a whole page. Deterministic, so that runs compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer

from demo.checkpoints import MINILM

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

OUTPUT: Final = "sentence_embedding"
_SENTENCES: Final = (
    "Where is my order?",
    "Thanks!",
    "The parcel arrived today, but one of the two lamps is broken.",
    "How do I change the address of a delivery that is already on its way?",
    "The battery lasts about two days when the screen is dimmed.",
    "Can I pay by invoice?",
    "My neighbour's router uses the same channel, and every evening the connection drops.",
    "The recipe asks for buttermilk; yoghurt thinned with a little milk works as well.",
    "A train leaves every twenty minutes until midnight, and then once an hour.",
    "Please cancel my subscription at the end of the month.",
    "The invoice shows the wrong VAT rate for books.",
    "Does the jacket run small?",
    "We hiked along the ridge until the fog came in, and then took the lower path through the wood.",
    "Restart the service and send us the log of the last ten minutes.",
    "The tenant must give notice three months before the end of the lease.",
    "Which of the two models is quieter?",
    "After the update the app asks for my password each time I open it.",
    "She studied physics in Vienna and later taught mathematics at a school by the sea.",
    "The warranty covers defects of material, but not damage by water.",
    "Is there a discount for students?",
    "The glacier has lost a third of its length since the first measurements.",
    "I was charged twice for the same month.",
    "Put the dough in a cool place overnight; it will rise slowly and taste better.",
    "The meeting is moved to Thursday at half past nine.",
    "Our cat refuses any food that is not salmon.",
    "To reset the device, hold both buttons until the light turns orange.",
    "The museum is closed on Mondays.",
    "A good translation keeps the rhythm of the sentence, not only its words.",
    "The pump is loud at night, and the pressure falls when two taps are open.",
    "What is the difference between the two insurance plans?",
)
#: How many sentences a text has, over and over: mostly one or two, at times a paragraph, seldom a page.
_LENGTHS: Final = (1, 1, 2, 1, 4, 1, 1, 3, 1, 1, 2, 1, 1, 5, 1, 1, 2, 1, 1, 12)


def texts(count: int) -> Iterator[str]:
    """So many texts of mixed length, no two the same."""
    position = 0
    for ticket in range(count):
        length = _LENGTHS[ticket % len(_LENGTHS)]
        sentences = (_SENTENCES[(position + offset) % len(_SENTENCES)] for offset in range(length))
        yield f"{ticket}: {' '.join(sentences)}"
        position += length


def tokenised(given: Iterable[str]) -> list[dict[str, Any]]:
    """Each text as the model's inputs, one request each."""
    tokenizer = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    requests = []
    for text in given:
        encoding = tokenizer.encode(text)
        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        requests.append(
            {name: {"datatype": "INT64", "shape": [1, len(data)], "data": data} for name, data in columns.items()}
        )
    return requests


def embeddings(requests: Iterable[dict[str, Any]], checkpoint: Path = MINILM) -> list[NDArray[np.float32]]:
    """What the original model makes of each request, by torch: mean over the tokens, scaled to length one."""
    # Imported late: this takes seconds, and `--down` needs none of it.
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()
    # For texts this short a second thread only waits, and on a busy machine for long.
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(checkpoint).eval()
    vectors = []
    with torch.no_grad():
        for inputs in requests:
            given = {name: torch.tensor([column["data"]]) for name, column in inputs.items()}
            pooled = model(**given).last_hidden_state.mean(dim=1)
            vectors.append(torch.nn.functional.normalize(pooled, dim=1)[0].numpy())
    return vectors


def as_json(count: int, checkpoint: Path = MINILM) -> str:
    """Requests for the load pod, with the answers that everybody's index holds."""
    requests = tokenised(texts(count))
    return json.dumps(
        [
            {"name": f"text-{index}", "inputs": inputs, "outputs": {OUTPUT: _tensor(vector)}}
            for index, (inputs, vector) in enumerate(zip(requests, embeddings(requests, checkpoint), strict=True))
        ],
        separators=(",", ":"),
    )


def _tensor(vector: NDArray[np.float32]) -> dict[str, Any]:
    # Five digits are plenty to tell a vector from another, and a ConfigMap holds no more than a megabyte.
    return {"datatype": "FP32", "shape": [1, vector.size], "data": [round(float(value), 5) for value in vector]}
