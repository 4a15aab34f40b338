"""What `watch` remembers of callers: who they are, what speaks against each, who behaves alike, what each has asked before. Bounded, in arrays."""
