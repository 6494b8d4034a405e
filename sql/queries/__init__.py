"""The statements that the server makes."""
