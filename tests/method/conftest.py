import pytest

from smsff.method.schedule import NoiseSchedule, scaled_linear_betas


@pytest.fixture(scope="session")
def schedule() -> NoiseSchedule:
    """The noise schedule of Stable Diffusion in float64."""
    return NoiseSchedule(scaled_linear_betas()).double()
