"""Yardsticks with known answers: IOI, labelled categories, cities, toy models and compiled programs."""
