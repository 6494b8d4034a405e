"""Other people's clients, driven against a bus whose connections are cut."""
