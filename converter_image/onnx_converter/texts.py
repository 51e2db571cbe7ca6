"""Real text for validation and golden requests: mixed length, script, case and punctuation.

Part of the image, so that nothing is fetched to validate and the same image asks the same questions.
"""

from __future__ import annotations

from typing import Final

SHORT: Final = (
    "ok",
    "Thanks!",
    "Where is my parcel?",
    "RESET PASSWORD",
    "The cat sat on the mat.",
    "A cat was sitting on a mat.",
    "How do I cancel my subscription?",
    "i want to stop paying every month",
    "Interest rates rose by 0.25 percentage points.",
    "Der Zug nach München hat 20 Minuten Verspätung.",
    "¿Dónde puedo cambiar la dirección de entrega?",
    "Le café ferme à 18 h.",
    "東京は今日も雨です。",
    "Погода сегодня хорошая.",
    "Café naïve façade — “quoted” … 100 % ✓ 🙂",
    "SELECT name, count(*) FROM orders WHERE total > 100 GROUP BY name;",
    "error: expected ';' before '}' token (line 42, column 17)",
    "https://example.org/path?query=1&other=two#fragment",
    "xkcd qwerty zzzz 12345 -- ~~ ++ ##",
)

MEDIUM: Final = (
    "The package arrived two days late and the box was damaged, but the lamp inside was fine and works well.",
    "She finished the marathon in just under four hours, which was ten minutes faster than she had ever run before.",
    "To restart the pump, close the inlet valve, wait thirty seconds, press the green button and open the valve.",
    "The committee postponed the vote because three members were absent and the budget had not been published.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen with the energy of light.",
    "If the temperature of the oil rises above ninety degrees, the controller reduces the load and raises an alarm.",
    "Our flight was cancelled, the airline offered no hotel, and nobody at the desk could say when we would leave.",
    "He never said that she took the money; he only said that the money had been taken while she was there.",
    "Nobody disliked the film, though hardly anyone would call it good, and I would not watch it again.",
)

_LONG: Final = (
    "When the river rose for the third time that spring, the people of the lower town had already "
    "carried their furniture upstairs. The bakery stayed open until the water reached the second step, and "
    "then the baker put a sign "
    "into the window that said he would be back on Monday. Children counted the branches that drifted past the church. "
    "The mayor, who had promised a wall after the first flood and a pump after the second, promised nothing this time; "
    "he stood in rubber boots beside the fire engine and handed out coffee. By evening the rain had stopped. "
    "Engineers measured the level every hour and wrote the numbers on a board: four metres ten, four metres twelve, "
    "four metres eleven. At midnight it fell for the first time, and somebody rang the bell, although "
    "it was forbidden. "
)

#: From about a hundred tokens to more than any encoder takes; the tokenizer cuts them to what it does take.
LONG: Final = (_LONG, _LONG * 2, _LONG * 8)

ALL: Final = (*SHORT, *MEDIUM, *LONG)
