"""`vlp-gym push`."""

from __future__ import annotations

from pathlib import Path

from vlp_gym.errors import CheckpointError, reason


def push(
    folder: Path,
    repository: str,
    /,
    *,
    license: str,
    report: Path | None = None,
    figures: bool = True,
    datasets: tuple[str, ...] = (),
    base_model: str | None = None,
    card: Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Upload a model to the Hugging Face hub, with a card that says how it was made and how good it is.

    For example: vlp-gym push runs/staged-vlp me/staged-vlp --license mit --report runs/eval/staged-vlp-vlp --dry-run

    Log in first: hf auth login, or HF_TOKEN. Uploaded are config.json, model.safetensors, the card and the figures, in
    one commit.

    Args:
        folder: folder of the model, from `vlp-gym train` or `save_pretrained`.
        repository: its name on the hub, org/name.
        license: your licence for the weights, as the hub names it: mit, apache-2.0, cc-by-nc-4.0, other.
        report: folder of `vlp-gym eval` with the figures; default: held-out in the model's folder.
        figures: a model without figures needs --no-figures, and its card says so.
        datasets: the training data on the hub, org/name.
        base_model: the model on the hub that it was trained from, org/name.
        card: upload this text as the card, such as that of an earlier --dry-run with your own words.
        private: make the repository private, if it is new.
        dry_run: upload nothing; write the card as card.md into the folder, and list the files.
    """
    from vlp_gym.evaluation.card import RESULTS, model_card, read_made, read_results
    from vlp_gym.models.checkpoint import is_hub_id, read_model_config
    from vlp_gym.storage import read_pair, write_atomic

    for name in (repository, *datasets, *([] if base_model is None else [base_model])):
        if not is_hub_id(name):
            raise ValueError(f"expected org/name, got {name!r}")
    model_type = str(read_model_config(folder)["model_type"])
    read_pair(folder, stem="model")  # its hashes: what is damaged is not uploaded
    report = folder / "held-out" if report is None else report
    if figures and not (report / RESULTS).exists():
        raise ValueError(
            f"--report: expected a folder with {RESULTS}, got {report}; run vlp-gym eval --model {folder}, or give "
            "--no-figures"
        )
    result = read_results(report, folder) if figures else None
    text = model_card(
        repository, license=license, model_type=model_type, made=read_made(folder), result=result,
        datasets=datasets, base_model=base_model,
    )  # fmt: skip
    if card is not None:
        text = card.read_text()
        if not text.startswith("---\n") or f"license: {license}\n" not in text:
            raise ValueError(f"--card: expected a card that begins with --- and has license: {license}, got {card}")
    files: dict[str, Path | bytes] = {name: folder / name for name in ("config.json", "model.safetensors")}
    files["README.md"] = text.encode()
    if figures:
        files[RESULTS] = report / RESULTS
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"{name:18} {size:>14,} bytes")
    if dry_run:
        write_atomic(folder / "card.md", text.encode())
        print(f"nothing was uploaded; the card: {folder / 'card.md'}")
        return
    print(f"uploaded: {_upload(repository, files, private)}")


def _upload(repository: str, files: dict[str, Path | bytes], private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi(library_name="vlp_gym")
        url = api.create_repo(repository, private=private, exist_ok=True)
        adds = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository, adds, commit_message="vlp-gym push")
    except Exception as error:  # httpx, the hub's own and OSError, depending on the version and the network
        raise CheckpointError(
            f"{repository}: the hub did not take the model ({reason(error)}); log in with hf auth login, and see "
            "whether you may write there"
        ) from error
    return str(url)
