"""Which TensorFlow operators a stored graph may contain.

A GraphDef is a program. TensorFlow has 1908 operators, and some of them read and write any file the server may, open connections, run
Python or end the process; a client who may store a model would be able to do all of that. `verdicts()` reads the operator registry of
the installed TensorFlow and says which operators a graph may not contain, and why. The rules, first match wins:

1. REFUSED names them one by one, with what they do.
2. A stateful operator (the registry says so: one with an effect besides its outputs) is refused unless STATEFUL names it. So an operator
   that a later TensorFlow adds is refused until someone has looked at it.
3. A stateless operator is refused when its name or one of its arguments speaks of files, addresses or programs (SUSPECT), unless HARMLESS
   names it. TensorFlow calls some operators stateless that read files (`ReadFile`, `ImmutableConst`), hence the third rule.
4. Some are refused only with certain attributes: CONDITIONS.

An operator that is not in the registry is not our business: importing the graph fails on it. Every node counts, also one that no output
needs and those inside library functions, because importing a graph already evaluates constant parts of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

FILES, NETWORK, PYTHON, DEBUGGER = (
    "it reads or writes files",
    "it opens connections",
    "it runs Python code",
    "it hands tensors to a debugger",
)
PROGRAM, ENDS = "it runs a program that is not part of the graph", "it ends the process"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: what the operator does -> operators
REFUSED: dict[str, frozenset[str]] = {
    FILES: _names("""
        ReadFile WriteFile MatchingFiles MatchingFilesDataset ExperimentalMatchingFilesDataset ImmutableConst
        Save SaveSlices SaveV2 Restore RestoreSlice RestoreV2 DTensorRestoreV2 MergeV2Checkpoints LoadAndRemapMatrix GenerateVocabRemapping
        WholeFileReader WholeFileReaderV2 TextLineReader TextLineReaderV2 TFRecordReader TFRecordReaderV2 FixedLengthRecordReader
        FixedLengthRecordReaderV2 LMDBReader IdentityReader IdentityReaderV2 ReaderRead ReaderReadV2 ReaderReadUpTo ReaderReadUpToV2
        ReaderRestoreState ReaderRestoreStateV2
        RecordInput Skipgram InitializeTableFromTextFile InitializeTableFromTextFileV2
        TextLineDataset TFRecordDataset TFRecordDatasetV2 FixedLengthRecordDataset FixedLengthRecordDatasetV2 CSVDataset CSVDatasetV2
        ExperimentalCSVDataset LMDBDataset ExperimentalLMDBDataset SqlDataset ExperimentalSqlDataset CacheDataset CacheDatasetV2
        SaveDataset SaveDatasetV2 LoadDataset DatasetToTFRecord ExperimentalDatasetToTFRecord SnapshotDataset SnapshotDatasetV2
        SnapshotDatasetReader SnapshotNestedDatasetReader SnapshotChunkDataset ListSnapshotChunksDataset DistributedSave
        CreateSummaryFileWriter CreateSummaryDbWriter SummaryWriter FlushSummaryWriter CloseSummaryWriter ImportEvent WriteSummary
        WriteRawProtoSummary WriteScalarSummary WriteHistogramSummary WriteImageSummary WriteAudioSummary WriteGraphSummary
        StatsAggregatorSetSummaryWriter CalibrationStatisticsSaver DumpTensor FileSystemSetConfiguration
    """),
    NETWORK: _names("""
        RpcServer RpcServerStart RpcServerRegister RpcClient RpcCall RpcCheckStatus RpcGetValue DeleteRpcFutureResource
        DataServiceDataset DataServiceDatasetV2 DataServiceDatasetV3 DataServiceDatasetV4 RegisterDataset RegisterDatasetV2
        RemoteCall Send Recv
    """),
    PYTHON: _names("PyFunc PyFuncStateless EagerPyFunc"),
    DEBUGGER: _names("""
        Copy CopyHost DebugIdentity DebugIdentityV2 DebugIdentityV3 DebugNanCount DebugNumericSummary DebugNumericSummaryV2
        DebugGradientIdentity DebugGradientRefIdentity
    """),
    PROGRAM: _names("DatasetFromGraph DeserializeIterator MlirPassthroughOp XlaCallModule XlaCustomCall XlaCustomCallV2"),
    ENDS: _names("Abort"),
}

#: reasons that stand also where the configuration allows file operators: no model needs these operators
ALWAYS = frozenset({PYTHON, DEBUGGER, ENDS})

Attributes = Mapping[str, Any]  # of a NodeDef: name -> AttrValue


def _text(attributes: Attributes, name: str) -> str:
    return attributes[name].s.decode("utf-8", "replace") if name in attributes else ""


#: operators that touch files only when an attribute asks for it -> does it?
CONDITIONS: dict[str, Callable[[Attributes], bool]] = {
    "PrintV2": lambda a: _text(a, "output_stream").startswith("file:"),
    "DecodeProtoV2": lambda a: (
        not _text(a, "descriptor_source").startswith(("local://", "bytes://")) and _text(a, "descriptor_source") != ""
    ),
    "EncodeProto": lambda a: not _text(a, "descriptor_source").startswith(("local://", "bytes://")) and _text(a, "descriptor_source") != "",
    "FixedUnigramCandidateSampler": lambda a: _text(a, "vocab_file") != "",
}

#: stateful operators that were looked at: their state lives and ends with the session
STATEFUL = _names("""
    AddManySparseToTensorsMap AddSparseToTensorsMap AllCandidateSampler AnonymousHashTable AnonymousIterator AnonymousIteratorV2
    AnonymousIteratorV3 AnonymousMemoryCache AnonymousMultiDeviceIterator AnonymousMultiDeviceIteratorV3
    AnonymousMutableDenseHashTable AnonymousMutableHashTable AnonymousMutableHashTableOfTensors AnonymousRandomSeedGenerator
    AnonymousSeedGenerator Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp Barrier BoostedTreesCenterBias
    BoostedTreesCreateEnsemble BoostedTreesCreateQuantileStreamResource BoostedTreesDeserializeEnsemble
    BoostedTreesEnsembleResourceHandleOp BoostedTreesExampleDebugOutputs BoostedTreesFlushQuantileSummaries
    BoostedTreesGetEnsembleStates BoostedTreesPredict BoostedTreesQuantileStreamResourceAddSummaries
    BoostedTreesQuantileStreamResourceDeserialize BoostedTreesQuantileStreamResourceFlush
    BoostedTreesQuantileStreamResourceGetBucketBoundaries BoostedTreesQuantileStreamResourceHandleOp BoostedTreesSerializeEnsemble
    BoostedTreesTrainingPredict BoostedTreesUpdateEnsemble BoostedTreesUpdateEnsembleV2 Case CheckNumerics CheckNumericsV2
    ConditionalAccumulator ConsumeMutexLock CudnnRNN CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3 CudnnRNNV2 CudnnRNNV3
    DatasetToSingleElement DeepCopy DeleteIterator DeleteMemoryCache DeleteMultiDeviceIterator DeleteRandomSeedGenerator
    DeleteSeedGenerator DeviceIndex DisableCopyOnRead DummyIterationCounter DummyMemoryCache DummySeedGenerator Empty
    ExperimentalGroupByReducerDataset ExperimentalIteratorGetDevice ExperimentalRandomDataset ExperimentalThreadPoolHandle FIFOQueue
    FIFOQueueV2 GeneratorDataset GlobalShuffleDataset GroupByReducerDataset GuaranteeConst HashTable HashTableV2 If
    InitializeTableFromDataset InitializeTableV2 IsBoostedTreesEnsembleInitialized IsBoostedTreesQuantileStreamResourceInitialized
    IsResourceHandleRefCounting IsTensorFloat32Enabled Iterator IteratorGetDevice IteratorGetNext IteratorGetNextAsOptional
    IteratorGetNextSync IteratorV2 LearnedUnigramCandidateSampler ListDataset LogUniformCandidateSampler LookupTableExportV2
    LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2 LookupTableRemoveV2 LookupTableSizeV2 MakeIterator MapClear
    MapIncompleteSize MapPeek MapSize MapStage MapUnstage MapUnstageNoKey MultiDeviceIterator MultiDeviceIteratorGetNextFromShard
    MultiDeviceIteratorInit Multinomial MutableDenseHashTable MutableDenseHashTableV2 MutableHashTable MutableHashTableOfTensors
    MutableHashTableOfTensorsV2 MutableHashTableV2 MutexLock MutexV2 NegTrain NonDeterministicInts OneShotIterator OrderedMapClear
    OrderedMapIncompleteSize OrderedMapPeek OrderedMapSize OrderedMapStage OrderedMapUnstage OrderedMapUnstageNoKey PaddingFIFOQueue
    PaddingFIFOQueueV2 ParameterizedTruncatedNormal Print PriorityQueue PriorityQueueV2 QueueCloseV2 QueueDequeueManyV2
    QueueDequeueUpToV2 QueueDequeueV2 QueueEnqueueManyV2 QueueEnqueueV2 QueueIsClosedV2 QueueSizeV2 RandomCrop RandomDataset
    RandomDatasetV2 RandomGamma RandomPoisson RandomPoissonV2 RandomShuffle RandomShuffleQueue RandomShuffleQueueV2
    RandomStandardNormal RandomUniform RandomUniformInt RangeDataset ReadVariableOp ReduceDataset ResourceAccumulatorApplyGradient
    ResourceAccumulatorNumAccumulated ResourceAccumulatorSetGlobalStep ResourceAccumulatorTakeGradient ResourceApplyAdaMax
    ResourceApplyAdadelta ResourceApplyAdagrad ResourceApplyAdagradDA ResourceApplyAdagradV2 ResourceApplyAdam
    ResourceApplyAdamWithAmsgrad ResourceApplyAddSign ResourceApplyCenteredRMSProp ResourceApplyFtrl ResourceApplyFtrlV2
    ResourceApplyGradientDescent ResourceApplyKerasMomentum ResourceApplyMomentum ResourceApplyPowerSign
    ResourceApplyProximalAdagrad ResourceApplyProximalGradientDescent ResourceApplyRMSProp ResourceConditionalAccumulator
    ResourceCountUpTo ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterDiv ResourceScatterMax ResourceScatterMin
    ResourceScatterMul ResourceScatterNdAdd ResourceScatterNdMax ResourceScatterNdMin ResourceScatterNdSub ResourceScatterNdUpdate
    ResourceScatterSub ResourceScatterUpdate ResourceSparseApplyAdadelta ResourceSparseApplyAdagrad ResourceSparseApplyAdagradDA
    ResourceSparseApplyAdagradV2 ResourceSparseApplyCenteredRMSProp ResourceSparseApplyFtrl ResourceSparseApplyFtrlV2
    ResourceSparseApplyKerasMomentum ResourceSparseApplyMomentum ResourceSparseApplyProximalAdagrad
    ResourceSparseApplyProximalGradientDescent ResourceSparseApplyRMSProp ResourceStridedSliceAssign RiscWhile RngReadAndSkip
    RngSkip SampleDistortedBoundingBox SampleDistortedBoundingBoxV2 ShuffleAndRepeatDatasetV2 ShuffleDatasetV2 ShuffleDatasetV3
    SparseConditionalAccumulator SparseTensorSliceDataset Stack StackCloseV2 StackPopV2 StackPushV2 StackV2 Stage StageClear
    StagePeek StageSize StatefulPartitionedCall StatefulRandomBinomial StatefulStandardNormal StatefulStandardNormalV2
    StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt StatefulUniformInt StatelessRandomGetAlg
    TakeManySparseFromTensorsMap TemporaryVariable TensorArray TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3
    TensorArrayGrad TensorArrayGradV2 TensorArrayGradV3 TensorArrayGradWithShape TensorArrayReadV3 TensorArrayScatterV3
    TensorArraySizeV3 TensorArraySplitV3 TensorArrayV2 TensorArrayV3 TensorArrayWriteV3 TensorDataset TensorSliceDataset
    ThreadPoolHandle ThreadUnsafeUnigramCandidateSampler Timestamp TruncatedNormal UniformCandidateSampler Unstage VarHandleOp
    VarIsInitializedOp Variable VariableShape VariableV2 While
""")

SUSPECT = re.compile(
    r"file|path|directory|logdir|save|restore|checkpoint|snapshot|prefix|record|reader|summary|rpc|server|address|(?<![a-z])ur[li]"
    r"|pyfunc|python|debug|dump|abort|graph_?def|mlir|custom_?call|memory_region|descriptor_source|serialized(?!_sparse)",
    re.IGNORECASE,
)

#: stateless operators that SUSPECT matches and that were looked at: all of them compute with what is in memory
HARMLESS = _names("""
    AudioSummary AudioSummaryV2 HistogramSummary ImageSummary MergeSummary ScalarSummary TensorSummary TensorSummaryV2
    BoostedTreesCalculateBestFeatureSplit BoostedTreesCalculateBestGainsPerFeature BoostedTreesMakeStatsSummary
    BoostedTreesSparseCalculateBestFeatureSplit CTCBeamSearchDecoder DecodeCSV DeserializeSparse OptionsDataset ParseExample ParseExampleV2
    ParseSequenceExample ParseSequenceExampleV2 ParseSingleExample ParseSingleSequenceExample ParseTensor ShardedFilename ShardedFilespec
    Snapshot
""")


def verdicts(registry: Iterable[Any]) -> dict[str, str]:
    """Operator name -> why it is refused, for every operator of the registry (OpDefs) that may not be used at all."""
    named = {name: reason for reason, names in REFUSED.items() for name in names}
    return {op.name: reason for op in registry if (reason := named.get(op.name) or _unknown(op))}


def _unknown(op: Any) -> str | None:
    if op.name in CONDITIONS:
        return None
    if op.is_stateful:
        return None if op.name in STATEFUL else "it is stateful and not known to be harmless"
    if op.name not in HARMLESS and any(SUSPECT.search(word) for word in words(op)):
        return "it may read or write files"
    return None


def words(op: Any) -> Iterator[str]:
    """What an operator calls itself, its arguments and its attributes."""
    yield op.name
    yield from (argument.name for argument in op.input_arg)
    yield from (attribute.name for attribute in op.attr)


def refused(
    graph_def: Any, table: Mapping[str, str], *, confined: frozenset[str] = frozenset(), files: bool = False
) -> tuple[str, str] | None:
    """The first operator of a GraphDef, or of a function in its library, that may not be used, and why.

    `table` is from verdicts(); `confined` are operators whose file names were made harmless; with `files` only ALWAYS counts.
    """
    for node in nodes(graph_def):
        reason = table.get(node.op) or conditional(node)
        if reason and node.op not in confined and (reason in ALWAYS or not files):
            return node.op, reason
    return None


def conditional(node: Any) -> str | None:
    condition = CONDITIONS.get(node.op)
    return FILES if condition and condition(node.attr) else None


def operators(graph_def: Any) -> frozenset[str]:
    return frozenset(node.op for node in nodes(graph_def))


def lies(node: Any) -> bool:
    """Whether a constant holds values of another type than it declares: the library checks some types by ending the process."""
    if node.op != "Const" or not {"dtype", "value"} <= set(node.attr):
        return False
    return bool(node.attr["value"].tensor.dtype != node.attr["dtype"].type)


def nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def
