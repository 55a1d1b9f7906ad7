"""The kinds of leak: what of the data or of the test a method may not know, in the words of messages and tables."""

BATCH = "test batch"
TEST = "test data"
LATER = "later tasks"
EARLIER = "earlier tasks"
KEPT = "images kept"
UNSEEN = "unseen classes"
IDENTITY = "task identity"
UNBOUND = "unbound term"
STATISTICS = "input statistics"

# What each is, for messages.
MEANING = {
    BATCH: "a prediction depends on what else is in the test batch",
    TEST: "the method sees test data outside its predictions",
    LATER: "the method sees data of tasks that have not begun",
    EARLIER: "the method reads training data of tasks that have ended",
    KEPT: "images stay in the state of a method without a replay buffer, or test images in that of any",
    UNSEEN: "outputs of classes that no task has shown decide between those that were shown",
    IDENTITY: "a class-IL prediction depends on the task or the labels of the test images",
    UNBOUND: "a term of the loss never moves a weight",
    STATISTICS: "inputs are normalised by statistics of tasks that have not begun",
}
