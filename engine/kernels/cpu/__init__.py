"""CPU kernels: one C++ call for a whole step of the model, behind a plain C interface (src/abi.h).

The library is built by `pip install` where there is a C++ compiler and picks the best instruction set of the
processor when it runs. Without it, or for a model that it does not know, the torch model serves.
"""
