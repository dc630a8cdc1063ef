"""Weights that other people's code has written: their layouts, and the architectures behind them."""
