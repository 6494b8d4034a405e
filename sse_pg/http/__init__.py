"""What every HTTP request goes through: problems, limits, access, parameters, bodies."""
