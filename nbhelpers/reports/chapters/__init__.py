"""The chapters that notebooks share. Each is one call, ``show_data`` and so on, which shows its tables and figures
and adds plain values to the run's record.
"""
