"""Four CPU devices, so that what is spread over devices is tested on several."""

import chex

chex.set_n_cpu_devices(4)
