"""What a model is good and bad at, as pictures and as one page that needs nothing beside it.

    figures    matplotlib: learning curves, confusion matrix, scores by class, calibration, errors
    pictures   pixels as they are: first-layer filters
    page       one HTML file with the pictures within it, and the folder that holds all

Nothing here predicts or measures: `cli._report` brings figures, images and maps together.
"""

from convserve.training.report.page import Page, Picture, Section, check_ready, write

__all__ = ["Page", "Picture", "Section", "check_ready", "write"]
