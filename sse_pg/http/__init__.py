"""What every HTTP request passes through: problem documents, limits, access, parameters, bodies."""
