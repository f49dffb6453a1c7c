from tests.support.training import finished, output, train  # noqa: F401  fixtures of these tests
