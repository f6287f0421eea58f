"""What the tensors of a module mean.

algorithm.py: What the package has to know of an algorithm other than plain LoRA: one record each.
tucker.py: LoCon with a Tucker core: a convolution's factors are 1x1, and the core has the window.
full.py: A full difference: the update itself.
lokr.py: LoKr: the Kronecker product of two small matrices.
loha.py: LoHa: the element-wise product of two low-rank matrices.
magnitudes.py: Magnitudes of DoRA: which rows or channels they are of, what they become elsewhere.
dora.py: DoRA: the sum of the weight and a low-rank update gets new row norms.
ia3.py: IA3: every row of the weight, or every input channel, times a number.
oft.py: Diagonal OFT of kohya and LyCORIS: blocks of output rows are rotated.
boft.py: BOFT of LyCORIS: a butterfly of block rotations of the output rows.
peft_oft.py: OFT of peft: blocks of input channels are rotated.
peft_boft.py: BOFT of peft: a butterfly of block rotations of the input columns.
glora.py: GLoRA: a low-rank update, and the weight times another one.
adalora.py: AdaLoRA: LoRA with a number for each rank column.
vera.py: VeRA: two vectors for each layer, and two random matrices that all layers share.
table.py: The adapter algorithms by name, and the ends of keys that tell their tensors.
cutting.py: The best factors of a rank for an update.
factoring.py: Updates of other algorithms made into LoRA factors, which all that follows works on.
companions.py: Tensors beside plain pairs that no projection moves: biases, norms, zeros.
foreign.py: Files that are no plain LoRA adapter: recognised by their keys and refused by name.
"""
