"""Turns and conversations as they happen; knows no Gradio."""
