"""What VLP publishes of its five held-out tasks: success of policies (table 2), sentences (table 12)."""

from __future__ import annotations

Figure = tuple[float, float]
"""Mean and standard deviation over 5 seeds, in percent."""

# task -> method -> with scripted labels, with VLP's labels
VLP_TABLE_2: dict[str, dict[str, tuple[Figure, Figure]]] = {
    "button-press-v3": {
        "p-iql": ((72.6, 7.1), (90.1, 3.9)), "ipl": ((50.6, 7.9), (56.0, 1.4)), "cpl": ((74.5, 8.2), (83.9, 11.8)),
    },
    "door-close-v3": {
        "p-iql": ((79.2, 6.3), (79.2, 6.3)), "ipl": ((61.5, 9.4), (61.5, 9.4)), "cpl": ((98.5, 1.0), (98.5, 1.0)),
    },
    "drawer-close-v3": {
        "p-iql": ((49.3, 4.2), (64.9, 2.9)), "ipl": ((64.3, 9.6), (63.2, 4.7)), "cpl": ((45.6, 3.5), (57.5, 14.3)),
    },
    "faucet-close-v3": {
        "p-iql": ((51.1, 7.5), (51.1, 7.5)), "ipl": ((45.4, 8.6), (45.4, 8.6)), "cpl": ((80.0, 2.9), (80.0, 2.9)),
    },
    "window-open-v3": {
        "p-iql": ((62.4, 6.4), (69.7, 6.8)), "ipl": ((54.1, 6.7), (61.4, 8.6)), "cpl": ((91.6, 1.7), (99.1, 1.1)),
    },
}  # fmt: skip


# task -> the sentence for all other models, the baseline for VLM-RM
VLP_TABLE_12: dict[str, tuple[str, str]] = {
    "button-press-v3": ("press button", "button"),
    "door-close-v3": ("close door", "door"),
    "drawer-close-v3": ("close drawer", "drawer"),
    "faucet-close-v3": ("turn faucet left", "faucet"),
    "window-open-v3": ("move window left", "window"),
}


def published_success(task: str, method: str, source: str) -> Figure | None:
    """What VLP publishes for a task and method.

    >>> published_success("door-close-v3", "cpl", "scripted")
    (98.5, 1.0)

    Args:
        task: full name.
        method: such as "p-iql".
        source: of the labels: "scripted" gives the paper's column of that name; "random" and "mtvlp", which it has not,
            None; any model's name the column of VLP's labels.

    Returns:
        Mean and standard deviation in percent, or None.
    """
    row = VLP_TABLE_2.get(task, {}).get(method)
    if row is None or source in ("random", "mtvlp", "human"):
        return None
    return row[0] if source == "scripted" else row[1]
