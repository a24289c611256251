"""MICrONS: tables through CAVE, unit-safe points, cutouts ordered by chunk, and an offline
miniature of it all.
"""
