"""Who calls, what they may do, how much of the depot they may take, and who was refused."""
