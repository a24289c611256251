"""Shares of each class per unit and condition, corrected for the errors of the classifier."""
