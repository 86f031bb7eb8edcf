"""Shapes and dtypes of tensors, written once.

Legend:
    b = blocks of the model
    c = complex channels of one block's state (`ModelConfig.state_size`)
    d = width of the real activations (`ModelConfig.hidden_size`)
    e = events of a micro-batch
    k = items recommended to one user
    l = positions of a padded sequence
    m = items excluded for one user
    n = sequences of a padded batch
    r = slots for states of users, one of them nobody's
    s = segments (sequences) of a packed batch
    t = rows of a packed batch: the positions of all its segments
    u = users of a micro-batch
    v = rows of the vocabulary: 1 + number of items; row 0 is the pad token

*Packed* rows lie segment after segment, oldest first. *Time-major* rows lie step after step: first
the first position of every segment, longest segment first, then every second position, and so on
(`models.scan.PackedLayout`).

dtype rules: parameters float32 (float64 in tests), state complex64, item indices int64, and nothing
is accumulated below float32.
"""

from jaxtyping import Bool, Complex, Complex64, Float, Float32, Int64
from torch import Tensor

Channels = Complex[Tensor, " c"]
PackedChannels = Complex[Tensor, "t c"]
SegmentStates = Complex[Tensor, "s c"]
PaddedChannels = Complex[Tensor, "n l c"]
PaddedMask = Bool[Tensor, "n l"]

PackedItems = Int64[Tensor, " t"]
SegmentLengths = Int64[Tensor, " s"]
PackedRows = Float[Tensor, "t d"]
PackedScores = Float[Tensor, "t v"]

UserStates = Complex64[Tensor, "u b c"]
SlotStates = Complex64[Tensor, "r b c"]
UserSlots = Int64[Tensor, " u"]
UserItems = Int64[Tensor, " u"]
UserLengths = Int64[Tensor, " u"]
UserOutputs = Float32[Tensor, "u d"]
UserScores = Float32[Tensor, "u v"]
EventItems = Int64[Tensor, " e"]
EventOutputs = Float32[Tensor, "e d"]
Output = Float32[Tensor, " d"]
ExcludedItems = Int64[Tensor, "u m"]
VocabularyFlags = Bool[Tensor, " v"]
TopScores = Float32[Tensor, "u k"]
TopItems = Int64[Tensor, "u k"]
