"""What is particular to one task: its recipes and the few lines that join the shared rooms for its
notebook.
"""
