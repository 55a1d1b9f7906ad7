"""Method files written for Mammoth: what they expect to find, in the two layouts of 2020-2023 and of today."""
