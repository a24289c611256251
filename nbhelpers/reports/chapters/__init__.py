"""The chapters that notebooks share. Each is one call (``show_data``, ``show_scores`` ...), which
shows its tables and figures and adds plain values to the run's record.
"""
