"""Data and settings of the recipe's tests: seconds, and something to learn."""

import random


CLASSES = {"negative": "dull", "neutral": "green", "positive": "warm"}
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FAST = {
    "effort": "quick",
    "teacher_examples": 1120,
    "teacher_epochs": 20.0,
    "teacher_learning_rate": 1e-2,
    "window_steps": 4,
    "window_tokens": 400,
    "distill_examples": 64,
    "keep_massive_ratio": 0.0,
    "bf16": "false",
    "speed": False,
}


def examples(count=200):
    """`(text, class)`, the class told by one word."""
    draw = random.Random(0)
    for number in range(count):
        name = draw.choice(list(CLASSES))
        yield f"{CLASSES[name]} {number % 7}", name


def flags(**options):
    """As a command line."""
    line = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *(str(each).lower() if isinstance(each, bool) else str(each) for each in values)]
    return line
