"""A bus for the tests of users: ``plugin`` has the fixtures, ``bus`` what they give. docs/testing.md shows both."""
