"""The operations of the model: one file each, with the contract in its docstring and a slow numpy reference.

Shape letters, used everywhere:

    B   sequence in a batch              T   token (row) of a batch, all sequences concatenated
    D   hidden size                      V   vocabulary
    H   query head or key head           HV  value head (DeltaNet)
    K   key head dimension               V   value head dimension (DeltaNet; clear from context)
    E   expert                           I   expert width
    C   channel of the short convolution N   rows of a weight, stored ``[N, K]`` as ``y = x @ W.T``

The recurrent state is float32 ``[HV, V, K]`` in the references and at every interface; a kernel may keep its own
layout inside.
Activations are float32 ``[T, …]`` at every interface of the numpy and native op sets.
"""
