"""Helpers behind the notebooks: image sets, splits, models, training, evaluation, figures, reports.

Data flows one way: ImageSet -> Split -> Model + Recipe -> Predictions -> metrics, figures ->
report. Importing the package has no side effects.
"""

__version__ = "0.1.0"
