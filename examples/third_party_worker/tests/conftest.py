import pytest

pytest.register_assert_rewrite("workers.contract")
