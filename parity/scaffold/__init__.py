"""Propose a pair file from two models: key map, taps, calls and inputs, with blanks where nothing decides."""
