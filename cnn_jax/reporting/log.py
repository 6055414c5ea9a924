"""A run's numbers on their way to people: files, TensorBoard, the progress bar."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .formats import format_number
from .progress import Progress
from .trackers import Tracker


@contextmanager
def log_run(
    folder: str | Path,
    steps: int,
    *,
    batch_size: int,
    steps_per_epoch: float,
    show: Sequence[str] = ("loss", "accuracy"),
    tensorboard: bool = False,
) -> Iterator[Callable[[str, int, Mapping], None]]:
    """Opens `metrics.jsonl` and a progress bar, and gives the `log` that `training.fit` takes.

    Args:
        folder: the run's.
        steps: of the whole run; `batch_size` images each.
        show: names of the numbers to print during training and after each evaluation, where there are such.
        tensorboard: also write events under `folder/tensorboard`.
    """
    with Tracker(folder, tensorboard=tensorboard) as tracker, Progress(steps, unit_images=batch_size) as progress:

        def log(kind: str, step: int, values: Mapping) -> None:
            if kind == "restored":
                tracker.truncate_after(step)
                for sentence in [*values["damaged"], f"resumed after step {step:,}"]:
                    progress.line(sentence)
                return
            epoch = step / steps_per_epoch
            # Arrays, such as a confusion matrix, are for the report.
            numbers = {name: value for name, value in values.items() if getattr(value, "ndim", 0) == 0}
            tracker.log(step, numbers, split=kind, epoch=epoch)
            shown = {name: values[name] for name in show if name in values}
            if kind == "train":
                progress.update(step, shown)
            else:
                texts = ", ".join(f"{kind} {name} {format_number(value)}" for name, value in shown.items())
                progress.line(f"epoch {epoch:.4g}: {texts}")

        yield log
