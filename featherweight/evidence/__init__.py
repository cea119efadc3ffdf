"""Does a compressed network still read the same evidence? Attributions of two, beside a yardstick, as one page."""

from featherweight.evidence.examples import Examples, of_images, of_sequences, of_task
from featherweight.evidence.study import Study, examine, required

__all__ = ["Examples", "Study", "examine", "of_images", "of_sequences", "of_task", "required"]
