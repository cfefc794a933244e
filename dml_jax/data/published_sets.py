"""The published data sets by name, with where they are and how their files list them."""

from dml_jax.data.datasets.cars196 import CARS196
from dml_jax.data.datasets.cub200 import CUB200
from dml_jax.data.datasets.inaturalist2018 import INATURALIST2018
from dml_jax.data.datasets.inshop import INSHOP
from dml_jax.data.datasets.sop import SOP
from dml_jax.data.published import Published

PUBLISHED: dict[str, Published] = {
    found.name: found for found in (CARS196, CUB200, INATURALIST2018, INSHOP, SOP)
}
