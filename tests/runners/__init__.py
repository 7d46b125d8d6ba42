"""Tests of evalkit/runners."""
