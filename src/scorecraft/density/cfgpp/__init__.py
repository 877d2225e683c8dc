"""CFG++: the step aims at the guided clean sample and measures its noise from the unguided one."""

from scorecraft.density.cfgpp.guidance import CFGPlusPlus, equivalent_scales
from scorecraft.density.cfgpp.inversion import invert

__all__ = ["CFGPlusPlus", "equivalent_scales", "invert"]
